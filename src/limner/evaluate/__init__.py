"""How well pictures match their words, and how far sets of pictures are apart."""
