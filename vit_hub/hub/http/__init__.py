"""Files at plain web addresses: resumed, retried, hashed on the way, whole under their name or not at all."""
