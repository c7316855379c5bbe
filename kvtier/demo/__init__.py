"""`kvtier demo`: long chats on a real engine whose KV does not fit its cache, with and without kvtier."""
