"""Operations that save time and memory and equal a plain one; the plain ones stand in the tests as definitions."""
