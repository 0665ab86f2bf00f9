"""What becomes of a picture? Decoding, the canonical view, resizing, augmentation."""
