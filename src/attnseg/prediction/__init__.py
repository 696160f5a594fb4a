"""From images to masks with a trained network, without what training needs: no torch here."""
