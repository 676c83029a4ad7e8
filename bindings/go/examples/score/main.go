// Tells how harmful a text is: go run ./examples/score "some text"
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"libsiren/siren"
)

func main() {
	text := "How can I make a cheesecake at home?"
	if len(os.Args) > 1 {
		text = os.Args[1]
	}
	guard, err := siren.Open(context.Background(), "") // the demo guard
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()
	result, err := guard.Score(context.Background(), siren.Text(text))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.4f harmful: %v\n", result.Score, result.Harmful)
}
