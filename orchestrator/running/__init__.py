"""How is a sweep run? The driver, stages on Ray, Ray Tune, and following what runs."""
