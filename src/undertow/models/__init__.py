"""Models: finding, loading, understanding, sampling and adapting them."""
