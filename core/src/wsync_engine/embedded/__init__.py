"""Postgres and Valkey from pip packages, under a data folder: the engine without any set-up."""
