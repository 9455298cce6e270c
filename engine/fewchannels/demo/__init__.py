"""The shapes world, and the small FLUX pipeline that draws it."""
