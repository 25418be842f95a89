from shared_data.story_world.world import Story, StoryWorld

__all__ = ["Story", "StoryWorld"]
