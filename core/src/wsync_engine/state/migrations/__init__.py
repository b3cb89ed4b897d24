"""The schema's history. Versions only add; what is removed goes a release later, so that old processes keep running meanwhile."""
