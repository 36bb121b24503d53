"""What is going on: pure functions of plain facts, which the edges only render."""
