"""Configuration: one YAML file, read once into typed models, refused with line, key and fix when anything is wrong."""

from unjam.config.load import from_urls, load, parse
from unjam.config.schema import Config
from unjam.config.tree import ConfigError, Problem

__all__ = ["Config", "ConfigError", "Problem", "from_urls", "load", "parse"]
