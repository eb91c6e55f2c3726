"""How fast this machine routes, trains and predicts, beside the textbook: measurements that refuse wrong results."""
