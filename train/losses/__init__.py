"""What is minimised: pure functions of log-probabilities, rewards and labels."""

from train.losses.preference import preference_loss

__all__ = ["preference_loss"]
