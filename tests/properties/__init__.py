"""What must hold for every input, not only for the ones somebody thought of."""
