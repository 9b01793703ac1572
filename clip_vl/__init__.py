"""clip_vl: train, fine-tune and evaluate image-text models in plain PyTorch."""
