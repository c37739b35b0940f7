"""Advantage estimators, one file each: from groups of judged samples (trees) to the credit of each id."""
