"""What `kvtier top` shows of a running server: its metrics (`scrape`), what they say (`facts`), the screen (`screen`)."""
