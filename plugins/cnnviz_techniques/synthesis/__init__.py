"""Pictures that a network makes of what it learnt."""
