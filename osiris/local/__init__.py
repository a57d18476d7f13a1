"""`osiris local`: the whole loop on a repository of the person's own, with devhub in GitHub's
place."""
