"""Medical domain-adaptive pretraining: the ground that data_prep, pretrain and eval share, and the command."""

__version__ = "0.1.0"
