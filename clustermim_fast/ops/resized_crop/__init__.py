from clustermim_fast.ops.resized_crop.op import resized_crop

__all__ = ["resized_crop"]
