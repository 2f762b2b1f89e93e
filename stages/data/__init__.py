"""The data sets: uint8 images with fixed splits, read from where torchvision leaves them, and augmentation."""
