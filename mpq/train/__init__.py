"""Training: one loop (`mpq.train.loop`), and the tasks that it trains."""
