"""A local page on which networks are tried: images are dropped, masks are seen and saved."""
