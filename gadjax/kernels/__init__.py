"""Attention kernels, KV caches and what else depends on the platform; `gadjax.kernels.choose` has the table."""
