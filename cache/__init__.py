"""The feature cache: its configuration, shard format, index and reader (numpy and h5py only)."""
