from clustermim_fast.ops.nearest_centroid.op import nearest_centroid

__all__ = ["nearest_centroid"]
