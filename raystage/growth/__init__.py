"""Growing a model between two stages: the map (pure data), its application, its certificate."""
