"""Measurements that maintainers repeat: loading, overhead, safety, start-up, scaling, bounds."""
