"""From a trained model to translations: search, and the translator around it."""
