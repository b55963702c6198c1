"""Search: prompts -> batched Gumbel MuZero trees over tokens or lines -> records."""
