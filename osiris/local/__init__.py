"""`osiris local`: the complete workflow on the user's own repository, with devhub in GitHub's
place."""
