"""Training: one loop for all methods.

A method describes *what* is trained as a :class:`~vision3d.training.task.Task` (modules, batches, loss,
export); :class:`~vision3d.training.trainer.Trainer` owns *how* (device and precision, schedule,
accumulation, EMA, checkpoints, logs). Nothing is imported here: the command line reaches the tasks lazily.
"""
