"""clip_vl: train, fine-tune and judge image-text models in plain PyTorch."""
