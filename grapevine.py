"""The public Python API: what ``from grapevine import …`` offers. Filled by re-exports only."""
