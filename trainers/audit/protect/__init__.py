"""Protection of pictures against inpainting models: one file each."""
