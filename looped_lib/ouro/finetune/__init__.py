"""Fine-tuning Ouro: config, data, one process of a torchrun job."""
