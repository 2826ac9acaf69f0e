"""How a target model learns, and the algebra that it needs."""
