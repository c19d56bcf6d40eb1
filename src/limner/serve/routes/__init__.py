"""What can be asked for over HTTP, one file for each subject. Routes parse and call; they hold no logic."""
