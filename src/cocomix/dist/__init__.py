"""One process or many: ranks that torchrun started, what they tell each other, models put over them from outside."""
