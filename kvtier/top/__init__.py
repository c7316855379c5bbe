"""What `kvtier top` shows of a running server: its metrics (`scrape`), what they say (`facts`) over time
(`history`), on a screen (`screen`), and as a page, in a file (`report`) or live (`live`).
"""
