"""Exchange of models with other toolkits, one module for each."""
