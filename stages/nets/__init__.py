"""The networks: classifiers (CNN, ResNet-18, WRN-28-10) and the adapter (a time-conditioned U-Net)."""
