"""Moving pictures of episodes: what the environment shows, and beside it what the agents' networks say."""
