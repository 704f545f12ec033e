"""The kernels that a layer can be given to, and what each says of itself."""
