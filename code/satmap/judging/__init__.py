"""Judge labels by the predictions of networks that were not trained on them."""
