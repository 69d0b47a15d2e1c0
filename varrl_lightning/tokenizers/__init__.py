"""Visual tokenizers: images to tokens, tokens to latents and images."""
