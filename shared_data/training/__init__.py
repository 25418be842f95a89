"""What training needs around the mathematics: batches in a resumable order, schedules, checkpoints."""
