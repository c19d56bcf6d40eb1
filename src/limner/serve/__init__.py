"""Pictures for programs and browsers: `store` keeps jobs, `engine` has them drawn, `app` answers."""
