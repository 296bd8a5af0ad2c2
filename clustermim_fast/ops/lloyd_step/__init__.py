from clustermim_fast.ops.lloyd_step.op import lloyd_step, lloyd_step_images

__all__ = ["lloyd_step", "lloyd_step_images"]
