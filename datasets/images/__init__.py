"""How is a picture turned into what the model sees? Decoding, the canonical view, resizing, augmentation."""
